//go:build cuda

package cuda

// Built reports whether this binary has the executor.
const Built = true
