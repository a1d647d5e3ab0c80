package app

import (
	"context"
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/logs"
)

// NewServeCommand returns the command that serves until SIGINT or SIGTERM; a
// second signal ends the process at once. use is its name, version the
// program's. cmd/serve is this command alone, `fewbit serve` the same. Errors
// of settings wrap ErrUsage.
func NewServeCommand(use, version string) *cobra.Command {
	cfg := Defaults()
	var file string
	cmd := &cobra.Command{
		Use:   use,
		Short: "Serve models over HTTP and run quantization jobs",
		Long: `Serve models over HTTP (Open Inference Protocol, classification) and run
quantization jobs. /openapi.json lists the routes; docs/http.md explains them.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unexpected argument %q; see %s --help", ErrUsage, args[0], use)
			}
			return nil
		},
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file != "" {
				if err := ReadFile(file, cmd.Flags()); err != nil {
					return err
				}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			context.AfterFunc(ctx, stop)
			log := slog.New(logs.New(cmd.ErrOrStderr(), cfg.logSettings()))
			a, err := New(ctx, cfg, version, log)
			if err != nil {
				return err
			}
			return a.Run(ctx, cmd.OutOrStdout())
		},
	}
	cfg.Flags(cmd.Flags())
	cmd.Flags().StringVar(&file, configFlag, "", "YAML file with these settings by name; flags override it")
	return cmd
}
