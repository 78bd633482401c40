;; A function that takes all updates at once and publishes the first one's F32 numbers. It traps when any update begins
;; with 666, and when together they begin with more than 5000.
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
  (func (export "catchment_combine") (result i64)
    (local $k i32) (local $i i32) (local $first f32) (local $sum f32)
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $k) (i32.load (i32.const 4108))))
      (local.set $first (f32.load (i32.load (i32.add (i32.const 4136) (i32.shl (local.get $k) (i32.const 5))))))
      (if (f32.eq (local.get $first) (f32.const 666)) (then (unreachable)))
      (local.set $sum (f32.add (local.get $sum) (local.get $first)))
      (local.set $k (i32.add (local.get $k) (i32.const 1)))
      (br $next)))
    (if (f32.gt (local.get $sum) (f32.const 5000)) (then (unreachable)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (i32.load (i32.const 4096))))
      (f32.store (i32.add (i32.load (i32.const 4120)) (i32.shl (local.get $i) (i32.const 2)))
        (f32.load (i32.add (i32.load (i32.const 4136)) (i32.shl (local.get $i) (i32.const 2)))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i64.const 0)))
