package engine

import "context"

// Meter is told that a run begins on the GPU with this UUID ("GPU-...", as NVML
// writes it), or with "" on the CPU, for that many requests. The function that it returns is called once,
// when the run ends, and told whether it answered them.
type Meter func(gpu string, requests int) (end func(answered bool))

type requestsKey struct{}

// WithRequests says how many requests a Run with this context answers at once: 0
// for one that nobody asked for, such as a first run to warm up.
func WithRequests(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, requestsKey{}, n)
}

// Requests returns what WithRequests said, 1 without.
func Requests(ctx context.Context) int {
	if n, ok := ctx.Value(requestsKey{}).(int); ok {
		return n
	}
	return 1
}
