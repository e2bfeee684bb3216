;; Returns a text of 6 MB.
(component
    (core module $m
        (memory (export "mem") 100)
        (func (export "run") (result i32)
            (i32.store (i32.const 0) (i32.const 16))
            (i32.store (i32.const 4) (i32.const 6000000))
            (i32.const 0)))
    (core instance $i (instantiate $m))
    (func (export "run") (result string) (canon lift (core func $i "run") (memory (core memory $i "mem")))))
