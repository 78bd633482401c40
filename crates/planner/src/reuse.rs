//! Warm instances before new ones.
//!
//! An instance that is warm has its memory, its machine code and its configuration. Its role is only what it is handed,
//! so a leaf that has nothing more to fold goes on as a middle, and a middle as the top, as LIFL has it; only what is
//! then still missing is started.

use serde::{Deserialize, Serialize};

/// What an instance does in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Folds updates.
    Leaf,
    /// Merges partials.
    Middle,
    /// Merges, finalises and makes the model.
    Top,
}

/// Instances that change their role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversion {
    /// What they were.
    pub from: Role,
    /// What they become.
    pub to: Role,
    /// How many.
    pub instances: u32,
}

/// How the instances wanted come to be, on one node and for one function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reuse {
    /// Warm ones that go on as what they are, by role.
    pub kept: [u32; 3],
    /// Warm ones that change their role.
    pub converted: Vec<Conversion>,
    /// New ones, by role.
    pub started: [u32; 3],
    /// Warm ones that nobody needs, by role. They may stay until their keep-alive ends.
    pub spare: [u32; 3],
}

/// Covers `wanted` instances (leaf, middle, top) with `warm` ones that are free: first those of the same role, then those
/// of the role below, which has finished before, then any other.
pub fn reuse(warm: [u32; 3], wanted: [u32; 3]) -> Reuse {
    const ROLES: [Role; 3] = [Role::Leaf, Role::Middle, Role::Top];
    let mut reuse = Reuse { spare: warm, started: wanted, ..Reuse::default() };
    for role in 0..3 {
        let kept = warm[role].min(wanted[role]);
        reuse.kept[role] = kept;
        reuse.spare[role] -= kept;
        reuse.started[role] -= kept;
    }
    // (from, to): upwards by one step first.
    for (from, to) in [(0, 1), (1, 2), (0, 2), (2, 1), (2, 0), (1, 0)] {
        let instances = reuse.spare[from].min(reuse.started[to]);
        if instances > 0 {
            reuse.spare[from] -= instances;
            reuse.started[to] -= instances;
            reuse.converted.push(Conversion { from: ROLES[from], to: ROLES[to], instances });
        }
    }
    reuse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_become_middles_and_the_top_before_anything_is_started() {
        let covered = reuse([4, 0, 0], [1, 1, 1]);
        assert_eq!(covered.started, [0, 0, 0]);
        assert_eq!(covered.spare, [1, 0, 0]);
        let to: Vec<_> = covered.converted.iter().map(|conversion| (conversion.from, conversion.to)).collect();
        assert_eq!(to, [(Role::Leaf, Role::Middle), (Role::Leaf, Role::Top)]);
    }

    #[test]
    fn only_what_is_missing_is_started() {
        for warm in 0..64u32 {
            for wanted in 0..64u32 {
                let split = |n: u32| [n % 4, n / 4 % 4, n / 16];
                let (warm, wanted) = (split(warm), split(wanted));
                let covered = reuse(warm, wanted);
                let [has, needs, starts] =
                    [warm, wanted, covered.started].map(|roles| roles.iter().copied().sum::<u32>());
                assert_eq!(starts, needs.saturating_sub(has), "{warm:?} for {wanted:?}");
                let converted: u32 = covered.converted.iter().map(|conversion| conversion.instances).sum();
                let kept: u32 = covered.kept.iter().sum();
                assert_eq!(kept + converted + starts, needs);
                assert_eq!(kept + converted + covered.spare.iter().sum::<u32>(), has);
            }
        }
    }
}
