package main

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	// side of an image, in pixels.
	side   = 28
	pixels = side * side
	// maxImages bounds what the header of a file may promise.
	maxImages = 1 << 20
)

// receipt is what tools/models wrote beside the model.
type receipt struct {
	Mean    float32            `json:"mean"`
	Std     float32            `json:"std"`
	Classes []string           `json:"classes"`
	Prompts map[string][][]int `json:"prompts"` // token ids of one caption a class
	Seconds float64            `json:"seconds"`
	Images  int                `json:"images"` // that trained: the first of the training images
	// Parameters, and the tokens that occur in a caption: only their embeddings are trained.
	Parameters int `json:"parameters"`
	Tokens     int `json:"tokens_used"`
	Vocabulary int `json:"vocabulary"`
}

func readReceipt(path string) (receipt, error) {
	var r receipt
	b, err := os.ReadFile(path)
	if err != nil {
		return r, fmt.Errorf("%s is missing; %s", path, fetchHint)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	captions := r.Prompts["seen"]
	if len(captions) == 0 || len(captions) != len(r.Classes) || len(captions[0]) == 0 || r.Std <= 0 {
		return r, fmt.Errorf("%s has %d classes and %d captions; %s", path, len(r.Classes), len(captions), fetchHint)
	}
	for _, c := range captions {
		if len(c) != len(captions[0]) {
			return r, fmt.Errorf("%s: captions of %d and %d tokens; %s", path, len(captions[0]), len(c), fetchHint)
		}
	}
	return r, nil
}

// captions are the token ids of one image's captions, in the order of the classes.
func (r receipt) captions() []int64 {
	var ids []int64
	for _, c := range r.Prompts["seen"] {
		for _, id := range c {
			ids = append(ids, int64(id))
		}
	}
	return ids
}

// images are what a camera gives: pixels and the class of each.
type images struct {
	pixels []byte // pixels bytes each
	labels []byte
}

func (im images) n() int { return len(im.labels) }

// slice returns the images from a to b.
func (im images) slice(a, b int) images {
	return images{im.pixels[a*pixels : b*pixels], im.labels[a:b]}
}

// normalized returns the pixels of images a to b as the model takes them.
func (im images) normalized(r receipt, a, b int) []float32 {
	x := make([]float32, 0, (b-a)*pixels)
	for _, v := range im.pixels[a*pixels : b*pixels] {
		x = append(x, (float32(v)/255-r.Mean)/r.Std)
	}
	return x
}

// readImages reads NAME-images-idx3-ubyte.gz and NAME-labels-idx1-ubyte.gz.
func readImages(folder, name string) (images, error) {
	x, n, err := readIDX(filepath.Join(folder, name+"-images-idx3-ubyte.gz"), side, side)
	if err != nil {
		return images{}, err
	}
	y, labels, err := readIDX(filepath.Join(folder, name+"-labels-idx1-ubyte.gz"))
	if err != nil {
		return images{}, err
	}
	if n != labels {
		return images{}, fmt.Errorf("%s: %d %s images have %d labels", folder, n, name, labels)
	}
	return images{x, y}, nil
}

// readIDX reads an array of bytes in the form of MNIST: two zeros, type 8, the
// number of dimensions, their sizes in big-endian order, the values. The first
// dimension is how many there are; dims are the others.
func readIDX(path string, dims ...int) (values []byte, n int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%s is missing; %s", path, fetchHint)
	}
	defer f.Close()
	bad := func(why string) ([]byte, int, error) {
		return nil, 0, fmt.Errorf("%s: %s; delete it, and %s", path, why, fetchHint)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return bad(err.Error())
	}
	head := make([]byte, 4+4*(1+len(dims)))
	if _, err := io.ReadFull(z, head); err != nil || !bytes.Equal(head[:4], []byte{0, 0, 8, byte(1 + len(dims))}) {
		return bad("no such array")
	}
	each := 1
	for i, d := range dims {
		if binary.BigEndian.Uint32(head[8+4*i:]) != uint32(d) {
			return bad("an array of another size")
		}
		each *= d
	}
	count := binary.BigEndian.Uint32(head[4:])
	if count == 0 || count > maxImages {
		return bad(fmt.Sprintf("it holds %d values", count))
	}
	values = make([]byte, int(count)*each)
	if _, err := io.ReadFull(z, values); err != nil {
		return bad("it is cut off")
	}
	if k, err := z.Read(make([]byte, 1)); k != 0 || !errors.Is(err, io.EOF) {
		return bad("it is longer than it says, or damaged")
	}
	return values, int(count), nil
}

// array is one of an .npz.
type array struct {
	name, kind string // kind is NumPy's: <f4, <i8
	shape      []int
	values     any
}

// npz writes arrays as NumPy's savez does.
func npz(w io.Writer, arrays ...array) error {
	z := zip.NewWriter(w)
	for _, a := range arrays {
		shape := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(a.shape)), ", "), "[]")
		head := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s,), }", a.kind, shape)
		head += strings.Repeat(" ", 63-(len(head)+10)%64) + "\n"
		f, err := z.CreateHeader(&zip.FileHeader{Name: a.name + ".npy", Method: zip.Store})
		if err != nil {
			return err
		}
		var b bytes.Buffer
		b.WriteString("\x93NUMPY\x01\x00")
		_ = binary.Write(&b, binary.LittleEndian, uint16(len(head))) // a buffer takes all
		b.WriteString(head)
		if err := binary.Write(&b, binary.LittleEndian, a.values); err != nil {
			return err
		}
		if _, err := f.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return z.Close()
}

// labelled writes images with their captions and classes.
func labelled(w io.Writer, im images, r receipt) error {
	ids, labels := make([]int64, 0, im.n()*len(r.captions())), make([]int64, im.n())
	for i, l := range im.labels {
		ids = append(ids, r.captions()...)
		labels[i] = int64(l)
	}
	return npz(w,
		array{"pixel_values", "<f4", []int{im.n(), 1, side, side}, im.normalized(r, 0, im.n())},
		array{"input_ids", "<i8", []int{im.n(), len(r.Classes), len(r.Prompts["seen"][0])}, ids},
		array{"label", "<i8", []int{im.n()}, labels})
}
