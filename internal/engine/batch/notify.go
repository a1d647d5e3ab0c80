package batch

import "context"

// notified is a context whose request tells when its run begins.
type notified struct {
	context.Context
	begins func()
}

// Notify returns a context for Queue.Run that calls f when the request's run
// begins, perhaps in another goroutine, before Run returns. It must be the
// outermost context that Run gets: looking for it costs nothing then.
func Notify(ctx context.Context, f func()) context.Context { return notified{ctx, f} }

func notify(ctx context.Context) {
	if n, ok := ctx.(notified); ok {
		n.begins()
	}
}
