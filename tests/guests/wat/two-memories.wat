;; Two memories of 6 MiB each.
(component
    (core module $m (memory 96) (func (export "run") (result i32) (i32.const 1)))
    (core instance $a (instantiate $m))
    (core instance $b (instantiate $m))
    (func (export "run") (result s32) (canon lift (core func $a "run"))))
