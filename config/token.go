package config

import "strings"

// token checks a [token.NAME].
func (k *checker) token(name string, t *Token) {
	k.name(t, "token", name)
	switch {
	case t.Issuer == "" && t.TokenURL == "":
		k.at(t, "issuer", "token %q has neither issuer nor token_url", name)
	case t.Issuer != "" && t.TokenURL != "":
		k.at(t, "token_url", "token_url: the issuer tells it").Hint = "issuer or token_url, not both"
	}
	for key, value := range map[string]string{"issuer": t.Issuer, "token_url": t.TokenURL} {
		if value == "" {
			continue
		}
		if _, why := parseURL(value, "https"); why != "" {
			k.at(t, key, "%s: %s", key, why)
		}
	}
	k.oneOf(t, "grant", t.Grant, "client_credentials", "jwt_bearer", "token_exchange", "refresh_token")
	k.oneOf(t, "client_auth", t.ClientAuth, "private_key_jwt", "tls", "client_secret_basic", "client_secret_post", "token", "none")
	if t.ClientID == "" && t.Grant != "jwt_bearer" {
		k.at(t, "client_id", "token %q has no client_id", name)
	}
	if secret := strings.HasPrefix(t.ClientAuth, "client_secret_"); secret != (t.ClientSecret != "") {
		if secret {
			k.at(t, "client_auth", "client_auth: %q wants a client_secret", t.ClientAuth)
		} else {
			k.at(t, "client_secret", "client_secret: client_auth %q does not use it", t.ClientAuth)
		}
	}
	var why string
	switch {
	case t.ClientAuth == "private_key_jwt" || t.ClientAuth == "tls":
		why = "client_auth \"" + t.ClientAuth + "\""
	case t.Grant == "jwt_bearer" || t.Grant == "refresh_token":
		why = "grant \"" + t.Grant + "\""
	case t.DPoP:
		why = "dpop"
	}
	if why != "" && t.Key == "" {
		k.at(t, "key", "token %q has no key", name).Hint = why + " wants a [key.NAME]"
	}
	if t.Key != "" && k.c.Keys[t.Key] == nil {
		k.noSuch(t, "key", -1, "key", t.Key, sortedKeys(k.c.Keys))
	}
	k.otherToken(name, t, "client_token", t.ClientToken, t.ClientAuth == "token", "client_auth \"token\"")
	k.otherToken(name, t, "subject_token", t.SubjectToken, t.Grant == "token_exchange", "grant \"token_exchange\"")
}

// otherToken checks a key that names another token, from which no way may lead back.
func (k *checker) otherToken(name string, t *Token, key, value string, needed bool, why string) {
	switch {
	case needed && value == "":
		k.at(t, key, "token %q has no %s", name, key).Hint = why + " wants a [token.NAME]"
	case !needed && value != "":
		k.at(t, key, "%s: only %s uses it", key, why)
	case value != "" && k.c.Tokens[value] == nil:
		k.noSuch(t, key, -1, "token", value, sortedKeys(k.c.Tokens))
	case value != "" && k.leadsTo(value, name, map[string]bool{}):
		k.at(t, key, "%s: %q is made from %q itself", key, value, name)
	}
}

func (k *checker) leadsTo(from, to string, seen map[string]bool) bool {
	t := k.c.Tokens[from]
	if from == to {
		return true
	}
	if t == nil || seen[from] {
		return false
	}
	seen[from] = true
	return k.leadsTo(t.ClientToken, to, seen) || k.leadsTo(t.SubjectToken, to, seen)
}
