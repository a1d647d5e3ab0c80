package logs

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestSettingsAct(t *testing.T) {
	var out bytes.Buffer
	h := New(&out, Defaults())
	log := slog.New(h).With("part", "test")
	say := func() string {
		out.Reset()
		log.Debug("d")
		log.Info("i")
		log.Warn("w")
		log.Error("e", "took", 1500*time.Microsecond)
		var levels []string
		for _, l := range strings.Split(strings.TrimSpace(out.String()), "\n") {
			if l != "" {
				levels = append(levels, l[strings.Index(l, "msg")+4:][:1])
			}
		}
		return strings.Join(levels, "")
	}
	for _, c := range []struct {
		set  func(*Settings)
		want string
	}{
		{func(*Settings) {}, "iwe"},
		{func(s *Settings) { s.Verbose = 1 }, "diwe"},
		{func(s *Settings) { s.Info = false }, "dwe"},
		{func(s *Settings) { s.Warning = false }, "de"},
		{func(s *Settings) { s.Error = false }, "d"},
		{func(s *Settings) { s.Verbose = 0 }, ""},
		{func(s *Settings) { *s = Defaults() }, "iwe"},
	} {
		s := h.Settings()
		c.set(&s)
		if err := h.Set(s); err != nil {
			t.Fatal(err)
		}
		if got := say(); got != c.want {
			t.Errorf("with %+v the lines are %q, want %q", s, got, c.want)
		}
	}
	s := h.Settings()
	s.Format = FormatJSON
	if err := h.Set(s); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	log.Error("e", "took", 1500*time.Microsecond)
	var got struct{ Level, Msg, Part, Took string }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Level != "ERROR" || got.Msg != "e" || got.Part != "test" || got.Took != "1.5ms" {
		t.Errorf("JSON line %s: %+v, %v", out.Bytes(), got, err)
	}
}

func TestSettingsRefused(t *testing.T) {
	h := New(&bytes.Buffer{}, Defaults())
	for _, s := range []Settings{{Verbose: -1, Format: FormatJSON}, {Verbose: MaxVerbose + 1, Format: FormatJSON}, {Format: "xml"}, {}} {
		if err := h.Set(s); !errors.Is(err, ErrSetting) {
			t.Errorf("%+v: %v, want ErrSetting", s, err)
		}
	}
	if h.Settings() != Defaults() {
		t.Error("a refused setting changed something")
	}
}

// TestLinesWhole: lines of both forms come whole when many write at once.
func TestLinesWhole(t *testing.T) {
	var out bytes.Buffer
	h := New(&out, Defaults())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				slog.New(h).Info("hello", "from", i)
				s := h.Settings()
				s.Format = []string{FormatJSON, FormatDefault}[i%2]
				_ = h.Set(s)
			}
		})
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 400 {
		t.Fatalf("%d lines, want 400", len(lines))
	}
	for _, l := range lines {
		if !strings.HasPrefix(l, "time=") && !json.Valid([]byte(l)) {
			t.Errorf("broken line %q", l)
		}
	}
}

func TestLimit(t *testing.T) {
	l := Limit{Burst: 3, Every: time.Second}
	now := time.Unix(1000, 0)
	passed := func(n int) (ok int) {
		for range n {
			if yes, _ := l.Allow(now); yes {
				ok++
			}
		}
		return ok
	}
	if got := passed(10); got != 3 {
		t.Errorf("%d of 10 at once passed, want 3", got)
	}
	now = now.Add(1500 * time.Millisecond)
	if ok, dropped := l.Allow(now); !ok || dropped != 7 {
		t.Errorf("after a second: %v with %d dropped, want one with 7", ok, dropped)
	}
	now = now.Add(600 * time.Millisecond) // 2.1 s in all: what was earned in part is kept
	if got := passed(5); got != 1 {
		t.Errorf("%d passed after 2.1 s, want 1", got)
	}
	now = now.Add(time.Hour)
	if got := passed(10); got != 3 {
		t.Errorf("%d passed after an hour, want the burst of 3", got)
	}
	if ok, _ := new(Limit).Allow(now); ok {
		t.Error("the zero value let a line through")
	}
}
