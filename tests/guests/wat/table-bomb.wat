;; Lets a table grow until it can't.
(component
    (core module $m
        (table $t 1 funcref)
        (func (export "run") (result i32)
            (loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
            (unreachable)))
    (core instance $i (instantiate $m))
    (func (export "run") (result s32) (canon lift (core func $i "run"))))
