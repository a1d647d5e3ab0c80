package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
)

// errUsage marks errors of wrong use: flags, arguments, recipes.
var errUsage = errors.New("wrong use")

// usageError is an error of wrong use; its text is that of the error inside.
type usageError struct{ err error }

func (e usageError) Error() string        { return e.err.Error() }
func (e usageError) Unwrap() error        { return e.err }
func (e usageError) Is(target error) bool { return target == errUsage }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

// wrongUse lists what the layers below call a bad request.
var wrongUse = []error{errUsage, quant.ErrConfig, pipeline.ErrNeedsCalibration, data.ErrOptions, calib.ErrMethod, pipeline.ErrSynthetic}

func exitCode(err error, interrupted bool) int {
	if interrupted && errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	for _, w := range wrongUse {
		if errors.Is(err, w) {
			return exitUsage
		}
	}
	return exitFailed
}

// maxErrorRunes bounds an error's line: names in it come from files.
const maxErrorRunes = 600

// fail prints err in one line and returns the exit code.
func fail(w io.Writer, err error, interrupted bool) int {
	code := exitCode(err, interrupted)
	text := err.Error()
	if code == exitInterrupted {
		text = "interrupted: nothing was written"
		if left := (*interruptedError)(nil); errors.As(err, &left) {
			text = left.text
		}
	}
	if errors.Is(err, engine.ErrMemory) {
		text += "; use fewer threads or a machine with more memory"
	}
	fmt.Fprintf(w, "fewbit: %s\n", oneLine(text))
	return code
}

// oneLine makes one bounded line of printable characters of s.
func oneLine(s string) string {
	var b strings.Builder
	n := 0
	for _, line := range strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if n > 0 {
			b.WriteString("; ")
		}
		for _, r := range line {
			if unicode.IsControl(r) || !unicode.IsPrint(r) {
				r = '\uFFFD'
			}
			if n++; n > maxErrorRunes {
				b.WriteString(" ...")
				return b.String()
			}
			b.WriteRune(r)
		}
	}
	return b.String()
}
