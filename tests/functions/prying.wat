;; A function of every class that computes nothing: it publishes what it finds where its results would go. $PRIES says
;; where it looks: 1 at the sums of a fold, 2 at those of a merge, 3 at the new model, 4 behind the sums of a fold, up to
;; the end of their page. $CONTRACT, $DESCRIPTION and $LENGTH are filled in by the test.
(module
  (import "catchment" "panic" (func $panic (param i32 i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "$DESCRIPTION")

  (func (export "catchment_abi") (result i32) (i32.const $CONTRACT))
  (func (export "catchment_describe") (result i64)
    (i64.or (i64.shl (i64.const $LENGTH) (i64.const 32)) (i64.const 1024)))
  (func (export "catchment_args") (result i32) (i32.const 4096))
  (func (export "catchment_room") (param i32) (result i32) (i32.const 65536))
  (func (export "catchment_init") (result i64) (i64.const 0))

  ;; out[i] = 0
  (func $clear (param $n i32) (param $out i32)
    (local $i i32)
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (f64.store (i32.add (local.get $out) (i32.shl (local.get $i) (i32.const 3))) (f64.const 0))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next))))

  ;; out[i] = out[n + i]
  (func $shift (param $n i32) (param $out i32)
    (local $i i32)
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (f64.store (i32.add (local.get $out) (i32.shl (local.get $i) (i32.const 3)))
        (f64.load (i32.add (local.get $out)
          (i32.shl (i32.add (local.get $n) (local.get $i)) (i32.const 3)))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next))))

  (func (export "catchment_fold")
    (if (i32.eq (i32.const $PRIES) (i32.const 1)) (then (return)))
    (if (i32.eq (i32.const $PRIES) (i32.const 4))
      (then (call $shift (i32.load (i32.const 4096)) (i32.load (i32.const 4108))) (return)))
    (call $clear (i32.load (i32.const 4096)) (i32.load (i32.const 4108))))

  (func (export "catchment_merge")
    (if (i32.eq (i32.const $PRIES) (i32.const 2)) (then (return)))
    (call $clear (i32.load (i32.const 4096)) (i32.load (i32.const 4108))))

  ;; out[i] = partial[i]
  (func (export "catchment_finalize") (result i64)
    (local $i i32)
    (if (i32.eq (i32.const $PRIES) (i32.const 3)) (then (return (i64.const 0))))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (i32.load (i32.const 4096))))
      (f32.store (i32.add (i32.load (i32.const 4120)) (i32.shl (local.get $i) (i32.const 2)))
        (f32.demote_f64 (f64.load (i32.add (i32.load (i32.const 4108)) (i32.shl (local.get $i) (i32.const 3))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i64.const 0))

  (func (export "catchment_combine") (result i64) (i64.const 0))
  (func (export "catchment_scalars") (param i32) (result i32) (i32.const 1))
  (func (export "catchment_measure"))
  ;; Every update counts 1.
  (func (export "catchment_choose") (result i64)
    (local $k i32)
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $k) (i32.load (i32.const 4096))))
      (f64.store (i32.add (i32.load (i32.const 4112)) (i32.shl (local.get $k) (i32.const 3))) (f64.const 1))
      (local.set $k (i32.add (local.get $k) (i32.const 1)))
      (br $next)))
    (i64.const 0))
  (func (export "catchment_make") (result i64) (i64.const 0)))
