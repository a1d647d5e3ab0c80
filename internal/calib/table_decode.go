package calib

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// decoder reads a table token by token, so that every limit is checked before
// the memory it bounds is allocated and a repeated key is seen.
type decoder struct {
	d      *json.Decoder
	memory int // bytes left for histograms
}

func (d *decoder) bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s near byte %d; write it again with fewbit calibrate", ErrTable, fmt.Sprintf(format, a...), d.d.InputOffset())
}

func (d *decoder) token() (json.Token, error) {
	t, err := d.d.Token()
	if err != nil {
		return nil, d.bad("not a complete JSON document (%v)", err)
	}
	return t, nil
}

func (d *decoder) delim(want json.Delim) error {
	t, err := d.token()
	if err != nil {
		return err
	}
	if t != want {
		return d.bad("found %.40q, expected %q", fmt.Sprint(t), want.String())
	}
	return nil
}

// object calls field for each key, which must read the value. required keys
// must be there, and no key twice.
func (d *decoder) object(limit int, required string, field func(key string) error) error {
	if err := d.delim('{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for d.d.More() {
		key, err := d.str(MaxNameBytes)
		if err != nil {
			return err
		}
		if seen[key] {
			return d.bad("%.80q stands there twice", key)
		}
		if len(seen) == limit {
			return d.bad("more than %d entries", limit)
		}
		seen[key] = true
		if err := field(key); err != nil {
			return err
		}
	}
	for key := range strings.FieldsSeq(required) {
		if !seen[key] {
			return d.bad("%q is missing", key)
		}
	}
	return d.delim('}')
}

// array calls item for each element, which must read it.
func (d *decoder) array(limit int, item func() error) error {
	if err := d.delim('['); err != nil {
		return err
	}
	for n := 0; d.d.More(); n++ {
		if n == limit {
			return d.bad("more than %d elements", limit)
		}
		if err := item(); err != nil {
			return err
		}
	}
	return d.delim(']')
}

func (d *decoder) str(limit int) (string, error) {
	t, err := d.token()
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	if !ok {
		return "", d.bad("found %.40q, expected a string", fmt.Sprint(t))
	}
	if len(s) > limit {
		return "", d.bad("a string of %d bytes, at most %d are allowed", len(s), limit)
	}
	if !utf8.ValidString(s) {
		return "", d.bad("a string that is not UTF-8")
	}
	return s, nil
}

func (d *decoder) number() (string, error) {
	t, err := d.token()
	if err != nil {
		return "", err
	}
	n, ok := t.(json.Number)
	if !ok {
		return "", d.bad("found %.40q, expected a number", fmt.Sprint(t))
	}
	return string(n), nil
}

func (d *decoder) count() (uint64, error) {
	n, err := d.number()
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(n, 10, 64)
	if err != nil || v > maxCount {
		return 0, d.bad("%.40q, expected a count from 0 to 2^56", n)
	}
	return v, nil
}

func (d *decoder) int(lo, hi int) (int, error) {
	n, err := d.number()
	if err != nil {
		return 0, err
	}
	v, err := strconv.Atoi(n)
	if err != nil || v < lo || v > hi {
		return 0, d.bad("%.40q, expected an integer from %d to %d", n, lo, hi)
	}
	return v, nil
}

func (d *decoder) float(bits int) (float64, error) {
	n, err := d.number()
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseFloat(n, bits)
	if err != nil {
		return 0, d.bad("%.40q is no finite float%d", n, bits)
	}
	return v, nil
}

func (d *decoder) f32() (float32, error) {
	v, err := d.float(32)
	return float32(v) + 0, err
}

func (d *decoder) bool() (bool, error) {
	t, err := d.token()
	if err != nil {
		return false, err
	}
	v, ok := t.(bool)
	if !ok {
		return false, d.bad("found %.40q, expected true or false", fmt.Sprint(t))
	}
	return v, nil
}
