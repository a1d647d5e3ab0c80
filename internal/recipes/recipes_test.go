package recipes

import (
	"io/fs"
	"slices"
	"strings"
	"testing"
)

// TestParse: every file is listed and holds what Recipe has, rules in their order.
func TestParse(t *testing.T) {
	found, err := fs.Glob(files, "*.yaml")
	if err != nil || len(found) != len(All) {
		t.Fatalf("files %v, names %v (%v)", found, All, err)
	}
	for _, name := range All {
		r, err := Parse(name)
		if err != nil || len(r.Rules) == 0 || !strings.Contains(Names, name) || (r.MinSQNR > 0) != (name == "cv") {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	if r, _ := Parse("multimodal"); !slices.Equal(r.Rules, []string{"@embeddings=int4", "@attention=fp16", "@head=fp16"}) {
		t.Errorf("multimodal: %v", r)
	}
	for _, name := range []string{"", "nlp.yaml", "../recipes/nlp", "NLP"} {
		if _, err := Parse(name); err == nil {
			t.Errorf("%q is a recipe", name)
		}
	}
}
