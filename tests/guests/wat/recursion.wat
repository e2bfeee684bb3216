;; Calls itself for ever.
(component
    (core module $m (func $f (export "run") (result i32) (i32.add (call $f) (i32.const 1))))
    (core instance $i (instantiate $m))
    (func (export "run") (result s32) (canon lift (core func $i "run"))))
