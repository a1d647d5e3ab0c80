//go:build cuda

package cuda

import (
	_ "embed"
	"regexp"
	"strings"
	"testing"
)

//go:embed steps.go
var launched string

//go:embed plan/step.go
var planned string

// TestEveryStepIsLaunched: what a plan can hold, launch knows. A step that it does
// not know would send whole models to the CPU.
func TestEveryStepIsLaunched(t *testing.T) {
	steps := regexp.MustCompile(`func \(\*(\w+)\) Entry\(\)`).FindAllStringSubmatch(planned, -1)
	if len(steps) < 20 {
		t.Fatalf("only %d steps were found", len(steps))
	}
	for _, m := range steps {
		if !strings.Contains(launched, "case *plan."+m[1]+":") {
			t.Errorf("launch does not know plan.%s", m[1])
		}
	}
}
