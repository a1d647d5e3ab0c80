//go:build cuda

package cuda

import (
	_ "embed"
	"regexp"
	"slices"
	"testing"
)

// The header goes along with the program of the tests, which runs without sources
// beside it in make gpu-check.
//
//go:embed fewbit_cuda.h
var header string

// The table of kernels.cu is what fewbit_cuda.h declares, family by family.
func TestEntries(t *testing.T) {
	var declared []Entry
	family := ""
	for _, m := range regexp.MustCompile(`(?m)^(?:/\* ---- (\w+)\.cu|(?:int|size_t)\s+(fb_\w+)\()`).FindAllStringSubmatch(header, -1) {
		if m[1] != "" {
			family = m[1]
		} else if m[2] == "fb_device" {
			declared = append(declared, Entry{m[2], "memory"})
		} else {
			declared = append(declared, Entry{m[2], family})
		}
	}
	listed := Entries()
	for _, e := range declared {
		if !slices.Contains(listed, e) {
			t.Errorf("kernels.cu does not list %v", e)
		}
	}
	for _, e := range listed {
		if !slices.Contains(declared, e) {
			t.Errorf("fewbit_cuda.h does not declare %v", e)
		}
	}
}
