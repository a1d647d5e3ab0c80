package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/access"
)

// defaultKeys is the file that the keys commands change unless --keys says
// otherwise.
const defaultKeys = "keys"

func newKeysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make, list or remove the keys that open a server's routes",
		Long: `Make, list or remove the keys of a file that serve --keys reads. The file holds
names, roles and hashes, never a key. A server reads it again when it changes.

A key of the role infer may ask models, one of the role admin may do everything.`,
		Args: noSuchCommand,
		Example: `  fewbit keys new --role admin --name ops
  fewbit keys list`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var file, role, name string
	var stdin, asJSON bool
	cmd.PersistentFlags().StringVar(&file, "keys", defaultKeys, "the file")
	add := &cobra.Command{
		Use: "new", Short: "Make a key, print it once and add its hash to the file", Args: exactArgs(),
		Example: `  fewbit keys new --role admin --name ops
  fewbit keys new --role infer --name shop --keys /etc/fewbit/keys`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := access.ParseRole(role)
			if err != nil {
				return usagef("--role: %s", err)
			}
			if name == "" {
				return usagef("--name is missing: it says in logs whose key it is")
			}
			text := ""
			if stdin {
				if text, err = readKey(cmd.InOrStdin()); err != nil {
					return err
				}
			}
			made, err := access.Add(file, name, r, text)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if stdin { // whoever brought it has it
				return nil
			}
			return say(cmd.OutOrStdout(), "%s\n", made)
		},
	}
	add.Flags().StringVar(&role, "role", "", "what it opens: infer or admin")
	add.Flags().StringVar(&name, "name", "", "whose it is, for logs and for removing it")
	add.Flags().BoolVar(&stdin, "stdin", false, fmt.Sprintf("take the key from standard input (%d characters or more, made at random) instead of making one", access.MinKeyLength))
	list := &cobra.Command{
		Use: "list", Short: "List the names and roles of the file's keys", Args: exactArgs(),
		Example: "  fewbit keys list --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := access.ReadFile(file)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			type entry struct {
				Name string      `json:"name"`
				Role access.Role `json:"role"`
			}
			entries := []entry{}
			var b strings.Builder
			for _, k := range keys.List() {
				entries = append(entries, entry{k.Name, k.Role})
				fmt.Fprintf(&b, "%-5s  %s\n", k.Role, k.Name)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]any{"keys": entries})
			}
			return say(cmd.OutOrStdout(), "%s", b.String())
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Take a key back", Args: exactArgs("NAME"),
		Example: "  fewbit keys remove shop",
		RunE: func(_ *cobra.Command, args []string) error {
			if err := access.Remove(file, args[0]); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			return nil
		},
	}
	cmd.AddCommand(add, list, remove)
	return cmd
}

// readKey reads the one line of a key.
func readKey(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, access.MaxKeyLength+2)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the key: %w", err)
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", usagef("--stdin: standard input is empty, expected a key")
	}
	return line, nil
}
