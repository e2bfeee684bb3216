;; Takes memory and writes to it until there is no more.
(component
    (core module $m
        (memory 1)
        (func (export "run") (result i32)
            (local $end i32)
            (loop
                (local.set $end (memory.grow (i32.const 8)))
                (if (i32.eq (local.get $end) (i32.const -1)) (then (unreachable)))
                (memory.fill
                    (i32.mul (local.get $end) (i32.const 65536)) (i32.const 255) (i32.const 524288))
                (br 0))
            (i32.const 0)))
    (core instance $i (instantiate $m))
    (func (export "run") (result s32) (canon lift (core func $i "run"))))
