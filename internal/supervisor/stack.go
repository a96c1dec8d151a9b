package supervisor

// spawnStack is somewhat more than a spawn takes of its goroutine's stack, in bytes.
const spawnStack = 20 << 10

// growStack has the goroutine's stack grow while there is time. Otherwise it grows several times
// in the midst of a spawn, and is copied to pages that nobody has touched each time.
//
//go:noinline
func growStack() {
	var room [spawnStack]byte
	touch(&room)
}

//go:noinline
func touch(room *[spawnStack]byte) { room[0]++ }
