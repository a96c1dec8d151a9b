package channel

import (
	"fmt"
	"hash/maphash"
	"math"
	"math/big"
	"math/bits"
)

// A guest can choose ints, and what is made of them, so that all hash alike in
// Python, and 100,000 such keys keep a dict busy for minutes. Both decoders
// refuse a container in which too many keys share a hash, so this file knows
// CPython's hash of the types whose hash can be chosen. Strings and dates are
// hashed with a secret there, and with one of our own here.

// hasher computes hashes as CPython does, on 64 bits.
type hasher struct {
	seed   maphash.Seed
	unique *uint64 // NaNs hash by identity
}

func newHasher() hasher { return hasher{seed: maphash.MakeSeed(), unique: new(uint64)} }

// modulus is the prime 2^61-1 of CPython's numeric hash.
const modulus = 1<<61 - 1

const hashInf = 314159

// checkKeys refuses keys that would be slow, or deep, to hash or compare.
func (h hasher) checkKeys(keys []any, limits Limits) error {
	random := true
	for _, key := range keys {
		switch key.(type) {
		case string, []byte, bool, nil:
		default:
			random = false
		}
	}
	if random {
		return nil
	}
	seen := make(map[uint64]int)
	for _, key := range keys {
		if _, err := keySize(key, 0, limits); err != nil {
			return err
		}
		value, err := h.hash(key)
		if err != nil {
			return err
		}
		seen[value]++
		if seen[value] > limits.Collisions {
			return invalid("more than %d keys have the same hash", limits.Collisions)
		}
	}
	return nil
}

func keySize(key any, depth int, limits Limits) (int, error) {
	var items []any
	switch k := key.(type) {
	case nil, bool, int64, *big.Int, float64, complex128, string, []byte, Date, Time, DateTime,
		TimeDelta, TimeZone, Decimal, *big.Rat, UUID, Path:
		return 1, nil
	case Tuple:
		items = k
	case Set:
		if !k.Frozen {
			return 0, invalid("set cannot be a dict key or set member")
		}
		items = k.Items
	default:
		return 0, invalid("%T cannot be a dict key or set member", key)
	}
	if depth == limits.KeyDepth {
		return 0, invalid("a key is nested deeper than %d levels", limits.KeyDepth)
	}
	size := 1
	for _, item := range items {
		n, err := keySize(item, depth+1, limits)
		if err != nil {
			return 0, err
		}
		if size += n; size > limits.KeySize {
			return 0, invalid("a key holds more than %d values", limits.KeySize)
		}
	}
	return size, nil
}

func (h hasher) hash(key any) (uint64, error) {
	switch k := key.(type) {
	case bool:
		if k {
			return 1, nil
		}
		return 0, nil
	case int64:
		return hashInt(big.NewInt(k)), nil
	case *big.Int:
		return hashInt(k), nil
	case float64:
		return h.hashFloat(k), nil
	case complex128:
		if math.IsNaN(real(k)) || math.IsNaN(imag(k)) {
			return h.hashFloat(math.NaN()), nil
		}
		return notMinusOne(h.hashFloat(real(k)) + 1000003*h.hashFloat(imag(k))), nil
	case *big.Rat:
		return hashFraction(k), nil
	case Decimal:
		return h.hashDecimal(k)
	case UUID:
		return hashInt(new(big.Int).SetBytes(k[:])), nil
	case Tuple:
		return h.hashTuple(k)
	case Set:
		return h.hashFrozenSet(k.Items)
	}
	return h.secret(contents(key)), nil
}

// contents is a text that two equal keys share.
func contents(key any) string {
	clock, _ := key.(Time)
	if both, ok := key.(DateTime); ok {
		clock = both.Time
	}
	if clock.Zone == nil {
		return fmt.Sprintf("%T%v", key, key)
	}
	zone := clock.Zone.Offset
	clock.Zone = nil
	if both, ok := key.(DateTime); ok {
		return fmt.Sprintf("%T%v%v%v", key, both.Date, clock, zone)
	}
	return fmt.Sprintf("%T%v%v", key, clock, zone)
}

func (h hasher) secret(s string) uint64 { return maphash.String(h.seed, s) }

func notMinusOne(hash uint64) uint64 {
	if hash == math.MaxUint64 {
		return math.MaxUint64 - 1
	}
	return hash
}

func signed(hash uint64, negative bool) uint64 {
	if negative {
		hash = -hash
	}
	return notMinusOne(hash)
}

func residue(n *big.Int) uint64 {
	return new(big.Int).Mod(new(big.Int).Abs(n), big.NewInt(modulus)).Uint64()
}

func hashInt(n *big.Int) uint64 { return signed(residue(n), n.Sign() < 0) }

func (h hasher) hashFloat(f float64) uint64 {
	switch {
	case math.IsInf(f, 0):
		return signed(hashInf, f < 0)
	case f != f:
		*h.unique++
		return h.secret(fmt.Sprint("nan", *h.unique))
	}
	fraction, exponent := math.Frexp(math.Abs(f))
	var x uint64
	for fraction != 0 {
		x = x<<28&modulus | x>>(61-28)
		fraction *= 1 << 28
		exponent -= 28
		y := uint64(fraction)
		fraction -= float64(y)
		if x += y; x >= modulus {
			x -= modulus
		}
	}
	shift := exponent % 61
	if shift < 0 {
		shift += 61
	}
	x = x<<shift&modulus | x>>(61-shift)
	return signed(x, f < 0)
}

func hashFraction(r *big.Rat) uint64 {
	p := big.NewInt(modulus)
	inverse := new(big.Int).ModInverse(r.Denom(), p)
	if inverse == nil {
		return signed(hashInf, r.Sign() < 0)
	}
	product := inverse.Mul(inverse, new(big.Int).SetUint64(residue(r.Num())))
	return signed(residue(product), r.Sign() < 0)
}

func (h hasher) hashDecimal(d Decimal) (uint64, error) {
	switch d.Special {
	case "F":
		return signed(hashInf, d.Negative), nil
	case "n":
		return h.hashFloat(math.NaN()), nil
	case "N":
		return 0, invalid("a signalling NaN cannot be a dict key or set member")
	}
	p := big.NewInt(modulus)
	ten := big.NewInt(10)
	if d.Exponent < 0 {
		ten.ModInverse(ten, p)
	}
	power := ten.Exp(ten, big.NewInt(int64(max(d.Exponent, -d.Exponent))), p)
	digits, _ := new(big.Int).SetString(d.Digits, 10)
	return signed(residue(power.Mul(power, digits)), d.Negative), nil
}

// hashTuple is xxHash as CPython 3.8 and later use it.
func (h hasher) hashTuple(items []any) (uint64, error) {
	const prime1, prime2, prime5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
	var acc uint64 = prime5
	for _, item := range items {
		lane, err := h.hash(item)
		if err != nil {
			return 0, err
		}
		acc += lane * prime2
		acc = bits.RotateLeft64(acc, 31) * prime1
	}
	acc += uint64(len(items)) ^ (prime5 ^ 3527539)
	if acc == math.MaxUint64 {
		return 1546275796, nil
	}
	return acc, nil
}

func (h hasher) hashFrozenSet(items []any) (uint64, error) {
	members := make(map[uint64]bool, len(items))
	var acc uint64
	for _, item := range items {
		hash, err := h.hash(item)
		if err != nil {
			return 0, err
		}
		if members[hash] { // the same member again, if nobody has chosen hashes
			continue
		}
		members[hash] = true
		acc ^= ((hash ^ 89869747) ^ (hash << 16)) * 3644798167
	}
	acc ^= (uint64(len(members)) + 1) * 1927868237
	acc ^= acc>>11 ^ acc>>25
	acc = acc*69069 + 907133923
	if acc == math.MaxUint64 {
		return 590923713, nil
	}
	return acc, nil
}
