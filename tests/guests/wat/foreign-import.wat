;; Imports what nobody here has heard of.
(component (import "evil:thing/all@1.0.0" (instance)))
