package recipes

import (
	"io/fs"
	"slices"
	"strings"
	"testing"
)

// TestRules: every file is listed and holds rules for operators alone, in their order.
func TestRules(t *testing.T) {
	found, err := fs.Glob(files, "*.yaml")
	if err != nil || len(found) != len(All) {
		t.Fatalf("files %v, names %v (%v)", found, All, err)
	}
	for _, name := range All {
		rules, err := Rules(name)
		if err != nil || len(rules) == 0 || !strings.Contains(Names, name) {
			t.Errorf("%s: %v, %v", name, rules, err)
		}
	}
	if rules, _ := Rules("multimodal"); !slices.Equal(rules, []string{"@embeddings=int4", "@attention=fp16", "@head=fp16"}) {
		t.Errorf("multimodal: %v", rules)
	}
	for _, name := range []string{"", "nlp.yaml", "../recipes/nlp", "NLP"} {
		if _, err := Rules(name); err == nil {
			t.Errorf("%q is a recipe", name)
		}
	}
}
