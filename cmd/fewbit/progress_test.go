package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/quant"
)

func clock(start time.Time) (func() time.Time, func(time.Duration)) {
	now := start
	return func() time.Time { return now }, func(d time.Duration) { now = now.Add(d) }
}

func TestMeterPlain(t *testing.T) {
	var b bytes.Buffer
	start := time.Unix(0, 0)
	now, wait := clock(start)
	m := &meter{w: &b, now: now, begin: start}
	m.show("open", 0) // within the first second: silent
	wait(1500 * time.Millisecond)
	m.show("calibrate", 0)
	for range 100 {
		wait(50 * time.Millisecond)
		m.show("calibrate", 0.5)
	}
	m.show("save", 0)
	m.done()
	want := "calibrate\ncalibrate 50 %, 2s left\ncalibrate 50 %, 4s left\nsave\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestMeterLate(t *testing.T) {
	var b bytes.Buffer
	start := time.Unix(0, 0)
	now, wait := clock(start)
	m := &meter{w: &b, now: now, begin: start}
	m.show("open", 0)
	wait(plainDelay)
	m.late() // what the timer calls while one phase takes long
	m.late()
	if b.String() != "open\n" {
		t.Errorf("got %q", b.String())
	}
}

func TestMeterTerminal(t *testing.T) {
	var b bytes.Buffer
	start := time.Unix(0, 0)
	now, wait := clock(start)
	m := &meter{w: &b, now: now, begin: start, terminal: true}
	m.show("calibrate", 0)
	for i := range 100 {
		wait(10 * time.Millisecond)
		m.show("calibrate", float64(i+1)/100)
	}
	m.show("calibrate", 7) // out of range: no panic, no 700 %
	m.done()
	out := b.String()
	if strings.Contains(out, "\n") || !strings.HasSuffix(out, "\r\x1b[K") {
		t.Errorf("the bar leaves something: %q", out)
	}
	if n := strings.Count(out, "["+strings.Repeat("#", barWidth)+"]"); n < 1 {
		t.Errorf("never full: %q", out)
	}
	if n := strings.Count(out, "\r"); n > 20 {
		t.Errorf("%d redraws in a second", n)
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                           "plain",
		"a\nb":                            "a; b",
		"a\r\n\r\n  b\n":                  "a; b",
		"bad\x1b[31m\x00":                 "bad\uFFFD[31m\uFFFD",
		"über 5 %":                        "über 5 %",
		strings.Repeat("x", 10_000):       strings.Repeat("x", maxErrorRunes) + " ...",
		strings.Repeat("x\n", 3) + "done": "x; x; x; done",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("%.40q: got %.60q, want %.60q", in, got, want)
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err         error
		interrupted bool
		want        int
	}{
		{errors.New("x"), false, exitFailed},
		{usagef("x"), false, exitUsage},
		{fmt.Errorf("quantize: %w", usagef("x")), false, exitUsage},
		{fmt.Errorf("quantize: %w: y", quant.ErrConfig), false, exitUsage},
		{fmt.Errorf("quantize: %w: y", quant.ErrQuantized), false, exitFailed},
		{errors.New("x"), true, exitFailed},
	} {
		if got := exitCode(c.err, c.interrupted); got != c.want {
			t.Errorf("%v: got %d, want %d", c.err, got, c.want)
		}
	}
}

func TestLossValue(t *testing.T) {
	for in, want := range map[string]float64{"1%": 0.01, "0.01": 0.01, "0.5 %": 0.005, "100%": 1, "1": 1} {
		var v lossValue
		if err := v.Set(strings.ReplaceAll(in, " ", "")); err != nil || abs(float64(v)-want) > 1e-12 {
			t.Errorf("%q: %v, %v", in, v, err)
		}
		var again lossValue
		if err := again.Set(v.String()); err != nil || abs(float64(again-v)) > 1e-9 {
			t.Errorf("%q prints as %q, which reads as %v (%v)", in, v.String(), again, err)
		}
	}
	for _, in := range []string{"", "0", "-1%", "101%", "2", "NaN", "Inf", "one"} {
		var v lossValue
		if err := v.Set(in); err == nil {
			t.Errorf("%q was taken as %v", in, v)
		}
	}
}

func abs(x float64) float64 { return max(x, -x) }
