;; Asks for a secret that it was not given, for ever.
(component
    (import "kaizen:plugin/secrets@0.1.0" (instance $secrets
        (export "reveal" (func (param "name" string) (result (result string (error string)))))))
    (core module $mem
        (memory (export "mem") 2)
        ;; What comes back is written over what came before.
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536)))
    (core instance $memory (instantiate $mem))
    (core func $reveal (canon lower (func $secrets "reveal")
        (memory (core memory $memory "mem")) (realloc (core func $memory "realloc"))))
    (core module $m
        (import "secrets" "reveal" (func $reveal (param i32 i32 i32)))
        (func (export "run") (result i32)
            (loop
                (call $reveal (i32.const 1024) (i32.const 4096) (i32.const 0))
                (br 0))
            (i32.const 0)))
    (core instance $imports (export "reveal" (func $reveal)))
    (core instance $i (instantiate $m (with "secrets" (instance $imports))))
    (func (export "run") (result s32) (canon lift (core func $i "run"))))
