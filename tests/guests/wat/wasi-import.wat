;; Imports a part of WASI that is not offered.
(component (import "wasi:keyvalue/store@0.2.0" (instance (export "open" (func)))))
