-- Environments have one spelling: lower-case, without white space around. Of letters beyond ASCII the server decides when
-- it deploys: a gateway whose environment has characters that cannot be told apart has to be given a new one first.
UPDATE connections SET environment = LOWER(TRIM(environment)) WHERE environment <> LOWER(TRIM(environment));
UPDATE deployments SET environment = LOWER(TRIM(environment)) WHERE environment <> LOWER(TRIM(environment));
