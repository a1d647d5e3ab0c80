// Command serve is the server alone, for containers: what `fewbit serve` starts.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/fewbit/fewbit/internal/app"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = "devel"

func main() {
	cmd := app.NewServeCommand("serve", version)
	cmd.Version = version
	cmd.AddCommand(app.NewPeakMemoryCommand())
	cmd.CompletionOptions.DisableDefaultCmd = true
	if err := cmd.ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		var usage *app.UsageError
		if errors.As(err, &usage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}
