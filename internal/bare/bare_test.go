package bare

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
)

func TestError(t *testing.T) {
	dir := t.TempDir()
	_, open := os.Open(dir + "/none")
	rename := os.Rename(dir+"/none", dir+"/other")
	for _, err := range []error{open, rename, fmt.Errorf("wrapped: %w", open)} {
		got := Error(err)
		if !errors.Is(got, fs.ErrNotExist) || strings.Contains(got.Error(), dir) {
			t.Errorf("%v -> %v", err, got)
		}
	}
	plain := errors.New("plain")
	if Error(plain) != plain || Error(nil) != nil {
		t.Error("other errors must stay")
	}
}
