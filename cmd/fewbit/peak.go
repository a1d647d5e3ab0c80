package main

import (
	"github.com/spf13/cobra"
)

// newPeakCommand is the child process in which quantize and compare measure
// the memory of one model alone.
func newPeakCommand() *cobra.Command {
	var engine engineFlags
	cmd := &cobra.Command{
		Use:     "peak-memory MODEL.onnx",
		Short:   "Print the peak memory of running a model in a process of its own",
		Example: "  fewbit peak-memory model.onnx",
		Hidden:  true,
		Args:    exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := engine.pipeline()
			if err != nil {
				return err
			}
			peak, err := p.PeakOf(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return writeJSON(cmd.OutOrStdout(), peak)
		},
	}
	engine.add(cmd)
	return cmd
}
