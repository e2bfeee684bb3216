;; Computes for ever before its function is called at all: in the `start` of its module.
(component
    (core module $m
        (func $start (loop (br 0)))
        (start $start)
        (func (export "run") (result i32) (i32.const 0)))
    (core instance $i (instantiate $m))
    (func (export "run") (result s32) (canon lift (core func $i "run"))))
