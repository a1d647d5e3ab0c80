//go:build cuda

package cuda

import "testing"

func TestTypesHaveNames(t *testing.T) {
	for v := F32; v <= Bool; v++ {
		if v.String() == "" || v.Size() == 0 {
			t.Errorf("type %d: name %q, %d bytes", v, v, v.Size())
		}
	}
	for v := None; v <= Clip; v++ {
		if v.String() == "" {
			t.Errorf("activation %d has no name", v)
		}
	}
	if got := Type(99).String() + " " + Act(-1).String(); got != "Type(99) Act(-1)" || Type(99).Size() != 0 {
		t.Errorf("unknown values print as %q", got)
	}
}
