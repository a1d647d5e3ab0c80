package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/engine/native"
)

func newPackCommand() *cobra.Command {
	var out string
	var asJSON bool
	var engine engineFlags
	cmd := &cobra.Command{
		Use:   "pack MODEL.onnx -o PACKED.onnx",
		Short: "Write a model of target cpu as this processor's kernels run it",
		Long: `Write a model of target cpu as the kernels of this processor run it: weights packed and
aligned to pages, in PACKED.onnx.data beside it, which processes map and share. It opens in
milliseconds, here and in ONNX Runtime with libfewbit_cpu.so registered (docs/cpu.md), and
nowhere else: keep MODEL.onnx. The server packs what it serves by itself.`,
		Example: `  fewbit quantize model.onnx -o small.onnx --calib texts.jsonl --target cpu
  fewbit pack small.onnx -o packed.onnx`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usagef("pack: -o PACKED.onnx is missing: say where the packed model goes")
			}
			inputs := append([]string{args[0]}, externalData(args[0])...)
			for _, o := range []string{out, out + ".data"} {
				if err := checkOutput("pack: -o", o, inputs...); err != nil {
					return err
				}
			}
			if err := checkFolder(out); err != nil {
				return fmt.Errorf("pack: -o: %w", err)
			}
			p, err := engine.pipeline()
			if err != nil {
				return err
			}
			e, ok := p.Engine.(*native.Engine)
			if !ok {
				return fmt.Errorf("pack: %w", native.ErrNoKernels)
			}
			res, err := e.Pack(cmd.Context(), args[0], out)
			if err != nil {
				return fmt.Errorf("pack: %w", err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), res)
			}
			return say(cmd.OutOrStdout(), "%s: %d operators for %s\n", oneLine(filepath.Base(out)), res.Operators, res.For)
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "where the packed model goes")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	engine.add(cmd)
	return cmd
}
