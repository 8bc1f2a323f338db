package node

// bodies counts which hashes the agent at the other end of a config stream
// has: those that a name of some subject, as last sent, refers to. The agent
// keeps the same count (Envelope in node.proto).
type bodies struct {
	references map[string]int               // by hash
	names      map[string]map[string]string // subject → name → hash
}

func newBodies() bodies {
	return bodies{references: map[string]int{}, names: map[string]map[string]string{}}
}

func (b *bodies) has(hash string) bool { return b.references[hash] > 0 }
func (b *bodies) add(hash string)      { b.references[hash]++ }

func (b *bodies) release(hash string) {
	if b.references[hash]--; b.references[hash] <= 0 {
		delete(b.references, hash)
	}
}

// set makes a subject's name refer to a hash; "" removes the name.
func (b *bodies) set(subject, name, hash string) {
	names := b.names[subject]
	old, had := names[name]
	if hash != "" {
		b.add(hash)
		if names == nil {
			names = map[string]string{}
			b.names[subject] = names
		}
		names[name] = hash
	} else {
		delete(names, name)
	}
	if had {
		b.release(old)
	}
}

func (b *bodies) drop(subject string) {
	for _, hash := range b.names[subject] {
		b.release(hash)
	}
	delete(b.names, subject)
}
