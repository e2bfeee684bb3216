;; Divides by zero.
(component
    (core module $m (func (export "run") (result i32) (i32.div_s (i32.const 1) (i32.const 0))))
    (core instance $i (instantiate $m))
    (func (export "run") (result s32) (canon lift (core func $i "run"))))
