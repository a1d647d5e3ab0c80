package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/recipes"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// maxRecipeBytes bounds a recipe file.
const maxRecipeBytes = 1 << 20

// notInRecipes are flags that say how one call is shown, not what is done, and
// one that runs a program: a recipe may come from elsewhere.
var notInRecipes = []string{"calibrator", "recipe", "json", "help", "dump-pass", "time-passes", "ort-lib", "cpu-lib", "out"}

// applyRecipe sets the flags that the YAML file, or the built-in recipe, names and
// the command line does not. Unknown and repeated names are errors that give the line.
func applyRecipe(flags *pflag.FlagSet, path string) error {
	name := filepath.Base(path)
	if b, ok := recipes.Read(path); ok {
		if err := setRecipe(flags, b, true); err != nil {
			return usagef("recipe %s: %w", name, err)
		}
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("recipe %s: %w; give a YAML file, or %s", name, bare.Error(err), recipes.Names)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecipeBytes+1))
	if err != nil {
		return fmt.Errorf("recipe %s: %w", name, bare.Error(err))
	}
	if len(b) > maxRecipeBytes {
		return usagef("recipe %s: longer than %d kB", name, maxRecipeBytes>>10)
	}
	if err := setRecipe(flags, b, false); err != nil {
		return usagef("recipe %s: %w", name, err)
	}
	return nil
}

// setRecipe sets the flags that a recipe's text names. A built-in one is for several
// commands: what this command has no flag for does not concern it (search chooses by
// itself what min-sqnr would).
func setRecipe(flags *pflag.FlagSet, b []byte, builtin bool) error {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("it is empty: expected lines such as \"scheme: int8\"")
		}
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("it holds more than one document")
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: expected lines such as \"scheme: int8\"", doc.Line)
	}
	given := map[string]bool{}
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	seen := map[string]int{}
	pairs := doc.Content[0].Content
	for i := 0; i+1 < len(pairs); i += 2 {
		key, value := pairs[i], pairs[i+1]
		flag := flags.Lookup(key.Value)
		if flag == nil && builtin {
			continue
		}
		if flag == nil || flag.Hidden || slices.Contains(notInRecipes, key.Value) {
			return fmt.Errorf("line %d: unknown field %q; known are %s", key.Line, key.Value, strings.Join(recipeFields(flags), ", "))
		}
		if at, twice := seen[key.Value]; twice {
			return fmt.Errorf("line %d: %q stands on line %d already", key.Line, key.Value, at)
		}
		seen[key.Value] = key.Line
		if err := setField(flag, value, given[key.Value]); err != nil {
			return fmt.Errorf("line %d: %s: %w", value.Line, key.Value, err)
		}
	}
	return nil
}

// setField sets one flag, or with check only looks whether it could be.
func setField(flag *pflag.Flag, value *yaml.Node, given bool) error {
	var items []string
	list, isList := flag.Value.(pflag.SliceValue)
	rules, isRules := flag.Value.(*rulesValue)
	if !isRules || value.Kind != yaml.MappingNode {
		rules = nil
	}
	switch {
	case rules != nil:
		for _, v := range value.Content {
			if v.Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: expected lines such as \"Gather: int4\"", v.Line)
			}
		}
	case value.Kind == yaml.ScalarNode && value.Tag != "!!null":
		items = []string{value.Value}
	case value.Kind == yaml.SequenceNode && isList:
		for _, v := range value.Content {
			if v.Kind != yaml.ScalarNode {
				return fmt.Errorf("expected a list of names")
			}
			items = append(items, v.Value)
		}
	case isList:
		return fmt.Errorf("expected a list of names")
	default:
		return fmt.Errorf("expected one value of type %s", flag.Value.Type())
	}
	if given {
		return nil // the command line wins
	}
	if rules != nil {
		for i := 0; i+1 < len(value.Content); i += 2 {
			k, v := value.Content[i], value.Content[i+1]
			if err := rules.put(k.Value, v.Value, k.Line); err != nil {
				return fmt.Errorf("line %d: %w", k.Line, err)
			}
		}
		flag.Changed = true
		return nil
	}
	if isList {
		return list.Replace(items)
	}
	if err := flag.Value.Set(items[0]); err != nil {
		return fmt.Errorf("%q: %w", items[0], err)
	}
	flag.Changed = true
	return nil
}

func recipeFields(flags *pflag.FlagSet) []string {
	var names []string
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && !slices.Contains(notInRecipes, f.Name) {
			names = append(names, f.Name)
		}
	})
	return names
}

// recipeText writes the settings in force, those that are not the default, as
// a recipe that gives the same run.
func recipeText(flags *pflag.FlagSet) (string, error) {
	doc := yaml.Node{Kind: yaml.MappingNode}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || slices.Contains(notInRecipes, f.Name) || f.Value.String() == f.DefValue {
			return
		}
		value := &yaml.Node{Kind: yaml.ScalarNode, Value: f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			value = &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
			for _, s := range list.GetSlice() {
				value.Content = append(value.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: s})
			}
		}
		doc.Content = append(doc.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: f.Name}, value)
	})
	if len(doc.Content) == 0 {
		return "", nil
	}
	b, err := yaml.Marshal(&doc)
	if err != nil {
		return "", fmt.Errorf("write the recipe: %w", err)
	}
	return string(b), nil
}
