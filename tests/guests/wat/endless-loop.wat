;; Computes for ever.
(component
    (core module $m (func (export "run") (result i32) (loop (br 0)) (i32.const 0)))
    (core instance $i (instantiate $m))
    (func (export "run") (result s32) (canon lift (core func $i "run"))))
