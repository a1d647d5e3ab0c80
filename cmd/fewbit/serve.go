package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/app"
)

// newServeCommand is the server, with the settings of the program serve.
func newServeCommand() *cobra.Command {
	cmd := app.NewServeCommand("serve", version)
	cmd.Example = "  fewbit serve --data-dir /var/lib/fewbit"
	cmd.Args = exactArgs()
	serve := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := serve(cmd, args)
		if errors.Is(err, app.ErrUsage) {
			return usageError{err}
		}
		return err
	}
	return cmd
}
