package access_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fewbit/fewbit/internal/access"
)

// Lines of events that come at the same time stay whole, and the file is
// rotated.
func TestAuditRotates(t *testing.T) {
	dir := t.TempDir()
	a, err := access.OpenAudit(filepath.Join(dir, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	const writers = 4
	each := access.AuditFileMB << 20 / writers / 700 * 5 / 4 // past the size
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := a.Record(access.Event{Who: fmt.Sprint(w), Path: strings.Repeat("p", 900), Method: "PUT", Status: i}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > access.AuditFileMB<<20 {
			t.Errorf("a file has %d bytes", len(b))
		}
		for line := range bytes.Lines(b) {
			if n++; !json.Valid(line) || len(line) > 1024 {
				t.Fatalf("line %.80q", line)
			}
		}
	}
	if n != writers*each {
		t.Errorf("%d lines, want %d", n, writers*each)
	}
	if _, err := access.OpenAudit(filepath.Join(dir, "none", "audit")); err == nil || strings.Contains(err.Error(), dir) {
		t.Errorf("a missing folder: %v", err)
	}
	var none *access.Audit
	if none.Record(access.Event{}) != nil || none.Close() != nil {
		t.Error("no log fails")
	}
}
