// Command serve is the server alone, for containers: what `fewbit serve` starts.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/app"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = "unknown"

// Exit codes, the same as fewbit's.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	cmd := app.NewServeCommand("serve", version)
	cmd.Version = version
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(app.NewPeakMemoryCommand())
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w; see serve --help", app.ErrUsage, err)
	})
	if err := cmd.ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		if errors.Is(err, app.ErrUsage) {
			os.Exit(exitUsage)
		}
		os.Exit(exitFailed)
	}
}
