// Command fewbit quantizes trained ONNX models, proves that they are still
// right, measures how much faster they are, and serves them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build: -ldflags "-X main.version=...".
var version = "unknown"

// Exit codes, part of the command line's contract.
const (
	exitGood        = 0
	exitFailed      = 1   // the work failed: a gate refused, a file is bad
	exitUsage       = 2   // wrong use
	exitInterrupted = 130 // by Ctrl-C or SIGTERM, as shells count: 128 + SIGINT
)

func main() { os.Exit(run()) }

// run executes the command line and returns the exit code. The first Ctrl-C
// cancels the work, which removes what it had half made; a second one ends the
// process at once.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	root := newRoot()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitGood
	}
	return fail(os.Stderr, err, ctx.Err() != nil)
}
