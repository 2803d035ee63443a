// Writes kinds.root, the branches that ROOT writes and uproot doesn't: root -b -q kinds.C
void kinds() {
  TFile file("kinds.root", "recreate", "", 101);
  TNtuple ntuple("ntuple", "", "a:b");
  for (int i = 0; i < 5; ++i) ntuple.Fill(i, 2 * i);
  ntuple.Write("", TObject::kOverwrite);
  TTree tree("events", "");
  struct { float x, y; } pos;
  struct { double e; int n; } mixed;
  Int_t run;
  Float16_t f16;
  Double32_t d32;
  double matrix[2][3];
  TLorentzVector* p4 = new TLorentzVector();
  std::pair<int, float> pair;
  tree.Branch("run", &run, "run/I");
  tree.Branch("pos", &pos, "x/F:y/F");
  tree.Branch("mixed", &mixed, "e/D:n/I");
  tree.Branch("f16", &f16, "f16/f");
  tree.Branch("d32", &d32, "d32/d[0,10,16]");
  tree.Branch("matrix", matrix, "matrix[2][3]/D");
  tree.Branch("p4.", &p4, 32000, 99);
  tree.Branch("unsplit", &p4, 32000, 0);
  tree.Branch("pair", &pair);
  for (int i = 0; i < 5; ++i) {
    run = i, f16 = i, d32 = i + 0.5;
    pos.x = i, pos.y = 10 * i, mixed.e = 0.5 * i, mixed.n = -i;
    for (int k = 0; k < 6; ++k) matrix[k / 3][k % 3] = 100 * i + 10 * (k / 3) + k % 3;
    p4->SetPxPyPzE(i, 2 * i, 3 * i, 10 * i);
    pair.first = i, pair.second = 2 * i;
    tree.Fill();
  }
  tree.Write("", TObject::kOverwrite);
}
