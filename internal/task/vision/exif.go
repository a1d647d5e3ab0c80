package vision

import "encoding/binary"

// Limits of the search for the EXIF orientation.
const (
	maxSegments = 256
	maxTags     = 1024
)

// exifOrientation returns the orientation (1 to 8) of a JPEG, 1 when it has
// none or it cannot be read (EXIF 2.3, section 4.6; TIFF 6.0).
func exifOrientation(b []byte) int {
	for i, n := 2, 0; i+4 <= len(b) && n < maxSegments; n++ {
		if b[i] != 0xff {
			return 1
		}
		marker := b[i+1]
		if marker == 0xff { // fill byte
			i++
			continue
		}
		if marker == 0xda || marker == 0xd9 { // the picture itself, or its end
			return 1
		}
		size := int(binary.BigEndian.Uint16(b[i+2:]))
		if size < 2 || i+2+size > len(b) {
			return 1
		}
		body := b[i+4 : i+2+size]
		if marker == 0xe1 && len(body) > 6 && string(body[:6]) == "Exif\x00\x00" {
			return tiffOrientation(body[6:])
		}
		i += 2 + size
	}
	return 1
}

func tiffOrientation(t []byte) int {
	if len(t) < 8 {
		return 1
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch string(t[:2]) {
	case "II":
	case "MM":
		order = binary.BigEndian
	default:
		return 1
	}
	dir := int64(order.Uint32(t[4:]))
	if order.Uint16(t[2:]) != 42 || dir+2 > int64(len(t)) {
		return 1
	}
	n := int(order.Uint16(t[dir:]))
	for k := range min(n, maxTags) {
		at := dir + 2 + int64(k)*12
		if at+12 > int64(len(t)) {
			return 1
		}
		const orientation, short = 0x0112, 3
		if order.Uint16(t[at:]) == orientation {
			v := int(order.Uint16(t[at+8:]))
			if order.Uint16(t[at+2:]) != short || v < 1 || v > 8 {
				return 1
			}
			return v
		}
	}
	return 1
}

// upright applies an EXIF orientation.
func upright(m *Image, orientation int) *Image {
	if orientation < 2 || orientation > 8 {
		return m
	}
	w, h := m.Width, m.Height
	out := newImage(w, h, m.Channels)
	if orientation >= 5 {
		out.Width, out.Height = h, w
	}
	n := m.Channels
	for y := range out.Height {
		for x := range out.Width {
			sx, sy := x, y
			switch orientation {
			case 2: // mirrored
				sx = w - 1 - x
			case 3: // upside down
				sx, sy = w-1-x, h-1-y
			case 4: // mirrored upside down
				sy = h - 1 - y
			case 5: // transposed
				sx, sy = y, x
			case 6: // to be turned clockwise
				sx, sy = y, h-1-x
			case 7: // transversed
				sx, sy = w-1-y, h-1-x
			case 8: // to be turned counter-clockwise
				sx, sy = w-1-y, x
			}
			copy(out.Pix[(y*out.Width+x)*n:][:n], m.Pix[(sy*w+sx)*n:][:n])
		}
	}
	return out
}
