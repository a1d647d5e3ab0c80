package main

import "github.com/spf13/cobra"

// newServeCommand is the server on this command line.
func newServeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Serve models over HTTP", Hidden: true, Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			return usagef("serve: use the program serve, built beside this one")
		},
	}
}
