// Package recipes holds the built-in recipes, those for a kind of models, which the
// command line and the server's jobs take by name.
package recipes

import (
	"embed"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed *.yaml
var files embed.FS

// All lists the names of the recipes.
var All = []string{"nlp", "cv", "multimodal"}

// Names is All for people.
const Names = "nlp, cv or multimodal"

// Read returns the YAML text of a recipe; ok is false when there is none of that name.
func Read(name string) (text []byte, ok bool) {
	if !slices.Contains(All, name) {
		return nil, false
	}
	b, err := files.ReadFile(name + ".yaml")
	return b, err == nil
}

// Recipe is what a built-in recipe holds.
type Recipe struct {
	// Rules for operators, MATCH=PRECISION in their order.
	Rules []string
	// MinSQNR is the least SQNR of the output in dB; 0 asks for none.
	MinSQNR float64
}

// Parse returns the recipe of that name.
func Parse(name string) (r Recipe, err error) {
	b, ok := Read(name)
	if !ok {
		return r, fmt.Errorf("no recipe %q; use %s", name, Names)
	}
	var doc struct {
		Operators yaml.Node `yaml:"operators"`
		MinSQNR   float64   `yaml:"min-sqnr"`
	}
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil {
		return r, fmt.Errorf("recipe %s: %w", name, err)
	}
	r.MinSQNR = doc.MinSQNR
	for i := 0; i+1 < len(doc.Operators.Content); i += 2 {
		r.Rules = append(r.Rules, doc.Operators.Content[i].Value+"="+doc.Operators.Content[i+1].Value)
	}
	return r, nil
}
