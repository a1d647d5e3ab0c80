package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
)

// maxName is how many characters of a name are shown.
const maxName = 200

// clean makes a string from a model file safe to show: control, formatting and
// bidirectional-override characters (which would move the terminal's cursor or
// swap the text around) become U+FFFD, and it is shortened to maxName.
func clean(s string) string { return shorten(cleanAll(s), maxName) }

func cleanAll(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// cleanLines is cleanAll for text of several lines.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = cleanAll(strings.ReplaceAll(l, "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

// shorten keeps both ends of s, because names differ at their ends, and puts
// an ellipsis where it cuts: at most n characters.
func shorten(s string, n int) string {
	if len(s) <= n { // bytes: at least as many as characters
		return s
	}
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	tail := (n - 1) / 2
	head := n - 1 - tail
	return string(r[:head]) + "…" + string(r[len(r)-tail:])
}

// Bytes words a size in decimal units, as disks and networks count.
func Bytes(n int64) string {
	f, units := float64(n), []string{"B", "kB", "MB", "GB", "TB"}
	i := 0
	for f >= 999.5 && i < len(units)-1 {
		f /= 1000
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return sig(f, 3) + " " + units[i]
}

// countText shows a count as 1.23 k, M, G, T.
func countText(n int64) string {
	f, units := float64(n), []string{"", " k", " M", " G", " T", " P"}
	i := 0
	for math.Abs(f) >= 999.5 && i < len(units)-1 {
		f /= 1000
		i++
	}
	if i == 0 {
		return strconv.FormatInt(n, 10)
	}
	return sig(f, 3) + units[i]
}

// sig shows x with n significant digits without an exponent where that is
// readable.
func sig(x float64, n int) string {
	if math.IsNaN(x) {
		return "–"
	}
	a := math.Abs(x)
	if x == 0 {
		return "0"
	}
	if math.IsInf(x, 0) || a >= 1e7 || a < 1e-4 {
		return strconv.FormatFloat(x, 'g', n, 64)
	}
	// The exponent after rounding: 0.9999 with three digits is 1.00.
	e := strconv.FormatFloat(a, 'e', n-1, 64)
	exp, _ := strconv.Atoi(e[strings.IndexByte(e, 'e')+1:])
	d := n - 1 - exp
	return strconv.FormatFloat(x, 'f', min(max(d, 0), 8), 64)
}

func msText(ms float64) string {
	switch {
	case ms >= 100:
		return fmt.Sprintf("%.0f ms", ms)
	case ms >= 10:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.2f ms", ms)
}

func secText(s float64) string {
	switch {
	case s >= 60:
		return fmt.Sprintf("%d min %02d s", int(s)/60, int(s)%60)
	case s >= 10:
		return fmt.Sprintf("%.1f s", s)
	case s >= 1:
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%.0f ms", 1000*s)
}

func percent(x float64) string { return fmt.Sprintf("%.2f %%", 100*x) }

// points shows a difference of two shares, in percentage points with a sign.
func points(x float64) string {
	s := fmt.Sprintf("%+.2f", 100*x)
	if s == "+0.00" || s == "-0.00" {
		return "0.00"
	}
	return strings.Replace(s, "-", "−", 1)
}

// cosineText shows enough digits to tell 0.9996 from 0.99996.
func cosineText(x float64) string {
	switch {
	case x > 0.9999 && x < 1:
		return fmt.Sprintf("%.6f", x)
	case x > 0.999 && x < 1:
		return fmt.Sprintf("%.5f", x)
	}
	return fmt.Sprintf("%.4f", x)
}

// times shows a ratio: 3.14×.
func times(x float64) string { return fmt.Sprintf("%.2f×", x) }

// Ratio words for text and tiles.
func change(before, after float64, less, more string) string {
	if before <= 0 || after <= 0 {
		return ""
	}
	if r := before / after; r >= 1 {
		return times(r) + " " + less
	}
	return times(after/before) + " " + more
}

// QuantName is the name of the quantized side in headings: "INT8".
func (r Report) quantName() string {
	if r.Recipe.Scheme == "" {
		return "quantized"
	}
	return strings.ToUpper(shorten(cleanAll(r.Recipe.Scheme), 20))
}
