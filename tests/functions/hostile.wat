;; A function that sums F32 updates well enough, until an update begins with a number that it does not bear:
;; 555 panics with words, 666 traps, 777 never returns. A mean that begins with 888 traps in finalise, 999 is refused.
;; $CONTRACT, $DESCRIPTION and $LENGTH are filled in by the test; the records of calls are those of the function contract.
(module
  (import "catchment" "panic" (func $panic (param i32 i32)))
  (memory (export "memory") 2)
  (data (i32.const 64) "I cannot bear 555")
  (data (i32.const 128) "no model begins with 999")
  (data (i32.const 1024) "$DESCRIPTION")

  (func (export "catchment_abi") (result i32) (i32.const $CONTRACT))
  (func (export "catchment_describe") (result i64)
    (i64.or (i64.shl (i64.const $LENGTH) (i64.const 32)) (i64.const 1024)))
  (func (export "catchment_args") (result i32) (i32.const 4096))
  (func (export "catchment_room") (param i32) (result i32) (i32.const 65536))
  (func (export "catchment_init") (result i64) (i64.const 0))

  ;; out[i] = in[i], or 0 where there is no in.
  (func $begin (param $n i32) (param $in i32) (param $out i32)
    (local $i i32)
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (f64.store (i32.add (local.get $out) (i32.shl (local.get $i) (i32.const 3)))
        (if (result f64) (local.get $in)
          (then (f64.load (i32.add (local.get $in) (i32.shl (local.get $i) (i32.const 3)))))
          (else (f64.const 0))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next))))

  (func $tempt (param $first f32)
    (if (f32.eq (local.get $first) (f32.const 555)) (then (call $panic (i32.const 64) (i32.const 17))))
    (if (f32.eq (local.get $first) (f32.const 666)) (then (unreachable)))
    (if (f32.eq (local.get $first) (f32.const 777)) (then (loop $for_ever (br $for_ever)))))

  ;; out[i] += weight * update[i]
  (func $add (param $n i32) (param $update i32) (param $weight f64) (param $out i32)
    (local $i i32) (local $at i32)
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (local.set $at (i32.add (local.get $out) (i32.shl (local.get $i) (i32.const 3))))
      (f64.store (local.get $at) (f64.add (f64.load (local.get $at)) (f64.mul (local.get $weight)
        (f64.promote_f32 (f32.load (i32.add (local.get $update) (i32.shl (local.get $i) (i32.const 2))))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next))))

  ;; out[i] += partial[i]
  (func $join (param $n i32) (param $partial i32) (param $out i32)
    (local $i i32) (local $at i32)
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (local.set $at (i32.shl (local.get $i) (i32.const 3)))
      (f64.store (i32.add (local.get $out) (local.get $at))
        (f64.add (f64.load (i32.add (local.get $out) (local.get $at)))
          (f64.load (i32.add (local.get $partial) (local.get $at)))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next))))

  (func (export "catchment_fold")
    (local $k i32) (local $of i32)
    (call $begin (i32.load (i32.const 4096)) (i32.load (i32.const 4104)) (i32.load (i32.const 4108)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $k) (i32.load (i32.const 4112))))
      (local.set $of (i32.add (i32.const 4120) (i32.shl (local.get $k) (i32.const 5))))
      (call $tempt (f32.load (i32.load (local.get $of))))
      (call $add (i32.load (i32.const 4096)) (i32.load (local.get $of))
        (f64.load offset=16 (local.get $of)) (i32.load (i32.const 4108)))
      (local.set $k (i32.add (local.get $k) (i32.const 1)))
      (br $next))))

  (func (export "catchment_merge")
    (local $k i32)
    (call $begin (i32.load (i32.const 4096)) (i32.load (i32.const 4104)) (i32.load (i32.const 4108)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $k) (i32.load (i32.const 4112))))
      (call $join (i32.load (i32.const 4096))
        (i32.load (i32.add (i32.const 4120) (i32.shl (local.get $k) (i32.const 2)))) (i32.load (i32.const 4108)))
      (local.set $k (i32.add (local.get $k) (i32.const 1)))
      (br $next))))

  (func (export "catchment_finalize") (result i64)
    (local $i i32) (local $first f64)
    (local.set $first (f64.div (f64.load (i32.load (i32.const 4108))) (f64.load (i32.const 4128))))
    (if (f64.eq (local.get $first) (f64.const 888)) (then (unreachable)))
    (if (f64.eq (local.get $first) (f64.const 999))
      (then (return (i64.or (i64.shl (i64.const 24) (i64.const 32)) (i64.const 128)))))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (i32.load (i32.const 4096))))
      (f32.store (i32.add (i32.load (i32.const 4120)) (i32.shl (local.get $i) (i32.const 2)))
        (f32.demote_f64 (f64.div (f64.load (i32.add (i32.load (i32.const 4108)) (i32.shl (local.get $i) (i32.const 3))))
          (f64.load (i32.const 4128)))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i64.const 0)))
