package eval

// TokenCosine is kept as a running mean and minimum: there may be millions.
type TokenCosine struct {
	N    int64   `json:"n"`
	Mean float64 `json:"mean"`
	Min  float64 `json:"min"`
}

// sameTokens adds the share of tokens that get the same class.
func (c *comparison) sameTokens(x, y reading) {
	if x.width == 0 || len(x.all) < x.width {
		return
	}
	n, same := len(x.all)/x.width, 0
	for i := range n {
		if p := ArgMax(x.all[i*x.width : (i+1)*x.width]); p >= 0 && p == ArgMax(y.all[i*x.width:(i+1)*x.width]) {
			same++
		}
	}
	c.shares = append(c.shares, float64(same)/float64(n))
}

// tokens adds the cosine of each token's vector.
func (c *comparison) tokens(x, y reading) {
	if x.width == 0 {
		return
	}
	for i := 0; i+x.width <= len(x.all); i += x.width {
		var e Error
		if e.Observe(x.all[i:i+x.width], y.all[i:i+x.width]) != nil {
			return
		}
		cos := e.Cosine()
		if !e.Sound() {
			cos = 0
		}
		if c.token.N == 0 || cos < c.token.Min {
			c.token.Min = cos
		}
		c.token.N++
		c.token.Mean += (cos - c.token.Mean) / float64(c.token.N)
	}
}
