package device

import (
	"errors"
	"math"
	"strings"
	"testing"
)

func TestSlice(t *testing.T) {
	s := Span{0x1000, 100}
	if got, err := s.Slice(40, 60); err != nil || got != (Span{0x1000 + 40, 60}) {
		t.Fatalf("got %v, %v", got, err)
	}
	for _, c := range [][2]int64{{-1, 1}, {0, 101}, {100, 1}, {101, 0}, {1, -1}, {1, math.MaxInt64}, {math.MaxInt64, 1}} {
		if got, err := s.Slice(c[0], c[1]); err == nil {
			t.Errorf("%d bytes at %d of 100: %v", c[1], c[0], got)
		}
	}
}

func TestErrorWords(t *testing.T) {
	for _, c := range []struct {
		err  *Error
		kind error
		want string
	}{
		{&Error{Op: "allocate", Device: "GPU 0", Detail: "4 bytes asked for, 2 of 3 free", Code: 2}, ErrOutOfMemory, "allocate on GPU 0: 4 bytes asked for, 2 of 3 free: CUDA error 2 (out of memory): out of device memory"},
		{&Error{Op: "synchronize stream", Code: 700}, ErrLost, "synchronize stream: CUDA error 700 (a kernel used an address outside its memory): CUDA device lost"},
		{&Error{Op: "copy", Code: 1}, nil, "copy: CUDA error 1"},
		{&Error{Op: "query", Code: 600}, nil, "query: CUDA error 600 (work is still running)"},
	} {
		c.err.Kind = kindOf(c.err.Code)
		if !errors.Is(c.err, c.kind) && c.kind != nil || c.err.Kind != c.kind || c.err.Error() != c.want {
			t.Errorf("got %q of kind %v, want %q of kind %v", c.err, c.err.Kind, c.want, c.kind)
		}
	}
	for code := range sticky {
		if words[code] == "" {
			t.Errorf("no words for the sticky code %d", code)
		}
	}
}

func TestInfo(t *testing.T) {
	if got := (Info{Ordinal: 1, Name: "NVIDIA X", SM: 90}).String(); !strings.Contains(got, "NVIDIA X (GPU 1, sm_90)") {
		t.Error(got)
	}
}
