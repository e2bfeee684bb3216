;; Five core instances.
(component
    (core module $m (func (export "run") (result i32) (i32.const 1)))
    (core instance $a (instantiate $m))
    (core instance $b (instantiate $m))
    (core instance $c (instantiate $m))
    (core instance $d (instantiate $m))
    (core instance $e (instantiate $m))
    (func (export "run") (result s32) (canon lift (core func $e "run"))))
