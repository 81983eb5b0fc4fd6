package auth
type Realm struct{}
