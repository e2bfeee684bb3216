;; What the others must not harm: some honest work, and its result.
(component
    (core module $m
        (memory 16)
        (func (export "run") (result i32) (local $n i32) (local $sum i32)
            (loop
                (local.set $sum (i32.xor (i32.mul (local.get $sum) (i32.const 31)) (local.get $n)))
                (i32.store (i32.and (local.get $n) (i32.const 65532)) (local.get $sum))
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if 0 (i32.lt_u (local.get $n) (i32.const 500000))))
            (i32.const 1)))
    (core instance $i (instantiate $m))
    (func (export "run") (result s32) (canon lift (core func $i "run"))))
