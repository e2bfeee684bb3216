;; Writes 1,000 log lines of 60,000 bytes.
(component
    (import "kaizen:plugin/log@0.1.0" (instance $log
        (type $l (enum "debug" "info" "warn" "error"))
        (export "level" (type $level (eq $l)))
        (export "write" (func (param "level" $level) (param "message" string)))))
    (core module $mem (memory (export "mem") 1))
    (core instance $memory (instantiate $mem))
    (core func $write (canon lower (func $log "write") (memory (core memory $memory "mem"))))
    (core module $m
        (import "log" "write" (func $write (param i32 i32 i32)))
        (func (export "run") (result i32) (local $n i32)
            (loop
                (call $write (i32.const 0) (i32.const 0) (i32.const 60000))
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if 0 (i32.lt_u (local.get $n) (i32.const 1000))))
            (local.get $n)))
    (core instance $imports (export "write" (func $write)))
    (core instance $i (instantiate $m (with "log" (instance $imports))))
    (func (export "run") (result s32) (canon lift (core func $i "run"))))
